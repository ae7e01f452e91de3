"""The coordinator under a virtual clock: the discrete-event simulator and the dashboard's demo."""
