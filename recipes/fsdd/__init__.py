"""Free Spoken Digit Dataset: a base model of four speakers, personalized to two others."""
