def check_images(x, *, name="images"):
    pass
