"""The purifiers that AMRM-Pure is compared with, one file each, and simple ones that any paper should face."""
