"""Problems: one loader per format, and the miniature."""
