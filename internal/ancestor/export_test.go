package ancestor

// ParseConfig is what ReadConfig does with the text of a file.
var ParseConfig = parseConfig
