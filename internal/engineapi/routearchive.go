package engineapi

import "net/http"

// archiveRoutes serves the routes of archives: save, load. done says that the
// request was one of them.
func (s *server) archiveRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
