package hooked

// Doors for the tests.
var (
	Read     = read
	ReadFile = readFile
	Same     = same
)

// MaxSize and MaxItems are the bounds.
const (
	MaxSize  = maxSize
	MaxItems = maxItems
)

// Check refuses what must not be believed.
func (c Config) Check() error { return c.check() }

// File is the name of the file.
func (c Config) File() string { return c.file() }
