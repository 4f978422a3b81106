package presence

// OfPrograms is NetworkManager on a host where it has another place.
var OfPrograms = networkManager
