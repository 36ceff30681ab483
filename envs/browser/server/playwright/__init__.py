"""The driver on Playwright, for everything but MiniWoB: users' sites with frames and dialogs."""
