/// Floats as bytes of a dynamic map, with a scale for each block of 256: block-wise dynamic quantization (Dettmers et al. 2022,
/// "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 2.1).
///
/// Codes are the nearest (`DynamicMap.nearest`), where bitsandbytes' CPU kernels look them up in bins of [-1, 1] and err by some.

import CKernels
import LinearAlgebra

public struct BlockCodes: Sendable {
    /// Values that share a scale: bitsandbytes' block size for optimizer states.
    public static let blockSize = Int(TRIBUTARY_CODE_BLOCK)

    public let map: DynamicMap
    public private(set) var codes: [UInt8]
    /// The largest magnitude of each block.
    public private(set) var scales: [Float]

    public init(zeros count: Int, map: DynamicMap) {
        self.map = map
        codes = [UInt8](repeating: map.nearest(0), count: count)
        scales = [Float](repeating: 0, count: (count + Self.blockSize - 1) / Self.blockSize)
    }

    public init(encoding values: [Float], map: DynamicMap, path: KernelPath = .active) {
        self.init(zeros: values.count, map: map)
        tributary_encode_codes(path.rawValue, map.table, values, values.count, &codes, &scales)
    }

    /// The values that the codes stand for.
    public func decoded() -> [Float] {
        codes.indices.map { map.values[Int(codes[$0])] * scales[$0 / Self.blockSize] }
    }

    public var byteCount: Int { codes.count + 4 * scales.count }

    /// For kernels that change codes and scales in place.
    public mutating func withUnsafeCodes<Result>(_ body: (tributary_codes) -> Result) -> Result {
        codes.withUnsafeMutableBufferPointer { codes in
            scales.withUnsafeMutableBufferPointer { scales in
                body(tributary_codes(map: map.table, codes: codes.baseAddress, scales: scales.baseAddress))
            }
        }
    }
}
