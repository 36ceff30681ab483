"""BrowserGym's MiniWoB as tasks, and scripted solvers for them."""
