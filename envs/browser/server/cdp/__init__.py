"""The driver that speaks the Chrome DevTools Protocol over pipes: the fast one, for MiniWoB."""
