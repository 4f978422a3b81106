package nm

// ignoreKey is the key in a profile's [user] data that takes its device away
// from multihomed. NetworkManager wants a dot in such keys (nm_setting_user_check_key).
const ignoreKey = "multihomed.ignore"
