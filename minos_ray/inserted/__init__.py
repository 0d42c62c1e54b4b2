"""Errors put into right solutions on purpose."""
