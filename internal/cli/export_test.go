package cli

import (
	"io"

	"multihomed/internal/status"
)

// Render shows a status as `status` does.
func Render(w io.Writer, s Status, colour bool, width int, verbose bool) error {
	return render(w, s, look{paint: painter(colour), width: width, verbose: verbose})
}

// For tests of the parts that render uses.
var (
	Wrap         = wrap
	Clean        = clean
	CompareNames = status.CompareNames
	Effective    = effective
)

// ShowOnly is what `status WORD...` shows.
func ShowOnly(w io.Writer, s Status, words ...string) error {
	if err := restrict(&s, words); err != nil {
		return err
	}
	return render(w, s, look{width: narrow, only: words})
}
