// Half precision on the host, rounded to nearest even as the device does it.
#pragma once

static float to_float(Half value) {
  const unsigned sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  float magnitude;
  if (rest >= 0x7c00u) {
    const unsigned bits = 0x7f800000u | (rest & 0x3ffu) << 13;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
  } else if (rest >= 0x400u) {
    const unsigned bits = (rest << 13) + (112u << 23);
    std::memcpy(&magnitude, &bits, sizeof magnitude);
  } else {
    magnitude = rest * 0x1p-24f;
  }
  return sign ? -magnitude : magnitude;
}

static Half to_half(float value) {
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
  const float magnitude = std::fabs(value);
  unsigned rest;
  if (value != value) {
    rest = 0x7fffu;
  } else if (magnitude >= 65520.0f) {
    rest = 0x7c00u;
  } else if (magnitude < 0x1p-14f) {
    rest = (unsigned)std::nearbyint(magnitude * 0x1p24f);
  } else {
    const unsigned scaled = (bits & 0x7fffffffu) - (112u << 23);
    rest = (scaled + 0xfffu + (scaled >> 13 & 1u)) >> 13;
  }
  return {(unsigned short)(sign | rest)};
}
