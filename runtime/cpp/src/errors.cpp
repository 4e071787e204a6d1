#include "denseport/denseport.hpp"

namespace denseport {

Error::Error(std::string message, std::string remedy, int exit_code)
    : std::runtime_error(remedy.empty() ? message : message + "\n  " + remedy),
      message_(std::move(message)),
      remedy_(std::move(remedy)),
      exit_code_(exit_code) {}

}  // namespace denseport
