"""The browser server: BrowserGym's MiniWoB in real Chromium, behind OpenEnv."""
