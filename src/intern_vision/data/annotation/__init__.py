"""Active annotation: which images people are asked about, how they are asked, and what their answers are worth."""
