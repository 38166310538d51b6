"""Reports: one self-contained HTML page a run.

`page.write_report` writes the page of a run folder; `page.write_page` writes a page from sections (`sections`), which
are plain data: charts come from `figures`, pictures from `pictures`, and one template turns everything into HTML.
"""
