/// FP4 in bitsandbytes' flavour: sign, two bits of exponent, one of fraction, over 12; its subnormal is 0.0625 / 12, where the
/// Open Compute format has 0.5 / 6.

import CKernels
import LinearAlgebra

extension WeightFormat {
    /// The widest gap of the table is between 2/3 and 1.
    public static let fp4 = FP4.row(largestCodeError: 1.0 / 6)
}

public enum FP4: FourBitFormat {
    public static let name = "fp4"
    /// Codes in the order of their bits; the upper eight are negative, but for a second zero (bitsandbytes' constants).
    public static let table: [Float] = [
        0, 0.005208333395421505, 0.6666666865348816, 1, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
        0, -0.005208333395421505, -0.6666666865348816, -1, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
    ]

    /// A tie between two magnitudes takes the smaller, as bitsandbytes' kernels for GPUs do.
    public static func encode(
        _ values: UnsafePointer<Float>, count: Int, blockSize: Int, packed: UnsafeMutablePointer<UInt8>,
        scales: UnsafeMutablePointer<Float>, path: KernelPath
    ) {
        tributary_encode_fp4(path.rawValue, values, count, blockSize, packed, scales)
    }
}
