package engineapi

import "net/http"

// registryRoutes serves imgfs' own routes that talk to registries. done says that the
// request was one of them.
func (s *server) registryRoutes(w http.ResponseWriter, r *http.Request, path string) (done bool, err error) {
	return false, nil
}
