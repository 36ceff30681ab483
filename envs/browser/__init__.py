"""Everything about browsers: the client, the page text, the server, MiniWoB."""
