"""The side-by-side web page. Public API: `demo.app.build` and `demo.app.serve`."""
