"""The report: one offline HTML file, and the table that the terminal shows."""
