"""The driver that speaks the Chrome DevTools Protocol over pipes."""
