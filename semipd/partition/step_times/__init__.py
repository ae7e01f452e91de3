"""How long steps take on so many units: models fitted while the lanes run."""
