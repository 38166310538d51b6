"""Networks: masked models, classifiers, and how they are saved and read."""
