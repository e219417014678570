/// NF4, bit for bit after bitsandbytes: sixteen quantiles of the normal distribution.

import CKernels
import LinearAlgebra

extension WeightFormat {
    /// The widest gap of the table is between -1 and -0.696.
    public static let nf4 = NF4.row(largestCodeError: 0.1519036)
}

public enum NF4: FourBitFormat {
    public static let name = "nf4"
    /// Scaled to [-1, 1] (bitsandbytes' constants).
    public static let table: [Float] = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]

    /// A tie between two values takes the lower code.
    public static func encode(
        _ values: UnsafePointer<Float>, count: Int, blockSize: Int, packed: UnsafeMutablePointer<UInt8>,
        scales: UnsafeMutablePointer<Float>, path: KernelPath
    ) {
        tributary_encode_nf4(path.rawValue, values, count, blockSize, packed, scales)
    }
}
