package engineapi

import "net/http"

// systemRoutes serves the routes of events, of what the disk holds, of logging in, and the refusals. done says that the
// request was one of them.
func (s *server) systemRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
