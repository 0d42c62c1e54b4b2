"""Text to steps to tokens; what stands after the first error; the text of critiques."""
