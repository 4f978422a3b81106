package dnsmasq

// RenderErrors is render.
func RenderErrors(servers []Server) ([]byte, []error) { return render(servers) }

// Render is render without the errors.
func Render(servers []Server) []byte {
	text, _ := render(servers)
	return text
}
