"""scikit-learn's handwritten digits: the image demo that needs no download."""
