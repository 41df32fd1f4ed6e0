# Enable real-time monitoring
monitor.enable_real_time_monitoring()

# Process input with monitoring
with monitor.track_performance():
    outputs = model(input_ids)

# Get real-time stats
live_stats = monitor.get_live_stats()
