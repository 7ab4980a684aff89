"""report.html: all that was found about a sweep on one page, which needs no network, no server and no other file."""
