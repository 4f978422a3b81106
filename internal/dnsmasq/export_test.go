package dnsmasq

// RenderErrors is render.
func RenderErrors(servers []Server) ([]byte, []error) { return render(servers) }
