// How many CPUs this process may use, and what they can; as denseport.runtime.system.cpus.
#pragma once

#include <string>
#include <vector>

namespace denseport {

int usable_cpus();  // of the affinity mask, or fewer where a control group's quota (rounded up) allows fewer
int check_threads(int threads);         // `usable_cpus` of 0; throws InputError for a number that nobody means
std::vector<std::string> arithmetic();  // "AVX2", "VNNI", …; empty where the kernel does not say
bool has_bf16();
bool has_vnni();          // it sums products of 8-bit integers in 32 bits
std::string processor();  // name and arithmetic: what verdicts call a machine

}  // namespace denseport
