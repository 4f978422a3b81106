package hookstate

// Doors for the tests.
var (
	Read = read
	Same = same
)

// MaxSize and MaxItems are the bounds.
const (
	MaxSize  = maxSize
	MaxItems = maxItems
)

// ReadFile reads one file.
func ReadFile(runtime, name string) (Config, error) {
	directory, err := open(runtime)
	if err != nil {
		return Config{}, err
	}
	defer directory.Close()
	return readFile(directory, name)
}

// Check refuses what must not be believed.
func (c Config) Check() error { return c.check() }

// File is the name of the file.
func (c Config) File() string { return c.file() }
