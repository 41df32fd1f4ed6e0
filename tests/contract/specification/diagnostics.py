# Run comprehensive diagnostics
diagnostics = monitor.run_diagnostics()

# Check component health
component_health = diagnostics['component_health']
hook_analysis = diagnostics['hook_analysis']
memory_analysis = diagnostics['memory_analysis']
