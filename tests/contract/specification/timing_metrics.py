metrics = {
    'capture_times': [0.001, 0.002, 0.001],      # Memory capture times
    'reconstruction_times': [0.003, 0.002],       # Reconstruction times
    'total_forward_time': 0.050,                  # Total forward pass time
    'avg_capture_time': 0.0013,                   # Average capture time
    'avg_reconstruction_time': 0.0025             # Average reconstruction time
}
