# Enable profiling
monitor.enable_profiling()

# Run profiled execution
with monitor.profile_execution():
    outputs = model(input_ids)

# Get profiling results
profile_results = monitor.get_profile_results()
