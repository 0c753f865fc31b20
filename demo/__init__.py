"""The side-by-side page. Public: `demo.app.build` and `demo.app.serve`."""
