/// LLM.int8's weights as bitsandbytes stores them: signed bytes with a scale for each row, w = q SCB / 127 (Dettmers et al. 2022,
/// arXiv:2208.07339, section 2.1). Read only: our own INT8 has a scale for every 64 columns, and errs less.
///
/// bitsandbytes also rounds what is multiplied with them to bytes, but for outliers; here products are those of the decoded weights.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

extension WeightFormat {
    public static let llmInt8 = WeightFormat(
        name: "llm-int8", bitsPerWeight: 8, blockSize: 0,
        open: { (map, checkpoint) throws(Failure) in
            guard checkpoint.isBitsAndBytes8Bit(map.name) else { return nil }
            let scales = try checkpoint.tensor(map.name + ".SCB").floats()
            guard scales.allSatisfy(\.isFinite) else {
                throw Failure(
                    .badData,
                    "\(checkpoint.path): tensor \(map.name).SCB holds a value that is not finite; fetch the checkpoint again")
            }
            return RowInt8Codes(codes: try checkpoint.tensor(map.name + ".weight"), scales: scales)
        })
}

struct RowInt8Codes: PackedWeights {
    /// `[rows, columns]`, mapped.
    let codes: StoredTensor
    /// The largest magnitude of each row.
    let scales: [Float]

    var formatName: String { "llm-int8" }
    var byteCount: Int { codes.range.count + 4 * scales.count }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath
    ) {
        tributary_decode_int8_rows(
            path.rawValue, codes.bytes.baseAddress!.assumingMemoryBound(to: Int8.self), scales, columns, rows.lowerBound,
            rows.upperBound, part.lowerBound, part.upperBound, target, stride)
    }
}
