"""Errors put into right solutions on purpose: reading the calculations, the error, its consequences, the note."""
