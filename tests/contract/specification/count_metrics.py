metrics = {
    'total_captures': 150,                        # Total memory captures
    'total_reconstructions': 75,                  # Total reconstructions
    'states_captured_per_layer': {4: 50, 6: 100}, # Per-layer captures
    'states_stored_per_layer': {4: 45, 6: 90},   # Per-layer storage
    'reconstructions_per_layer': {4: 25, 6: 50}  # Per-layer reconstructions
}
