/// The codec `compeft:K[:global][:sigma=ALPHA]`: the signs of the largest magnitudes and one scale, the rest is zero.
///
/// Yadav et al. 2023, "ComPEFT", section 2: keep the signs of the share K of an update that is largest in magnitude, times
/// alpha x sigma of the dense update. Deviations: the scale is by default the mean kept magnitude, which is the best one
/// (it minimizes the squared error, and error feedback cannot diverge with it); tensors are compressed one by one, where
/// the paper's code makes one vector of them, as `:global` does; exactly n values are kept, ties to the lower index.
/// The positions are Golomb-coded, where the paper gives entropies.
///
/// For each tensor a `SparseHeader`, then the Golomb-coded positions with a sign each.

import Adapters
import CKernels
import Primitives

/// Over what the largest magnitudes are looked for, and the scale is computed.
public enum ComPEFTScope: Sendable, Hashable {
    /// Each tensor has its own.
    case tensor
    /// All tensors are taken as one vector: they share the number of kept values and the scale.
    case allTensors
}

/// The magnitude that every kept value gets.
public enum ComPEFTScale: Sendable, Hashable {
    /// The mean magnitude of the kept values.
    case meanMagnitude
    /// This multiple of the population standard deviation of all values, kept or not; positive.
    case deviations(Double)
}

struct ComPEFTCodec: PayloadCodec {
    static let identifier: UInt8 = 4
    static let name = "compeft"
    static let form = "compeft:K[:global][:sigma=ALPHA] with 0 < K <= 1 and ALPHA > 0, as in compeft:0.1"

    let density: Density
    let scope: ComPEFTScope
    let scale: ComPEFTScale

    init(density: Double, scope: ComPEFTScope, scale: ComPEFTScale) {
        if case .deviations(let alpha) = scale { precondition(alpha > 0 && alpha.isFinite, "alpha is \(alpha)") }
        self.density = Density(density)
        self.scope = scope
        self.scale = scale
    }

    init?(parsing parts: [Substring]) throws(Failure) {
        guard let first = parts.first else { return nil }
        density = try Density(parsing: first)
        var rest = parts.dropFirst()
        scope = rest.first == "global" ? .allTensors : .tensor
        if scope == .allTensors { rest = rest.dropFirst() }
        if let text = rest.first, text.hasPrefix("sigma=") {
            guard let alpha = Density.number(text.dropFirst("sigma=".count)), alpha > 0, alpha <= 1e6 else {
                throw Failure(
                    .usage,
                    "\"\(text)\" sets the scale's multiple of sigma: give a number above 0 and at most 1000000, as in sigma=1")
            }
            scale = .deviations(alpha)
            rest = rest.dropFirst()
        } else {
            scale = .meanMagnitude
        }
        guard rest.isEmpty else { return nil }
    }

    var parameters: [String] {
        var parts = [density.description]
        if scope == .allTensors { parts.append("global") }
        if case .deviations(let alpha) = scale { parts.append("sigma=\(Density.text(alpha))") }
        return parts
    }

    var allowsErrorFeedback: Bool { scale == .meanMagnitude }

    /// Tensors that share a selection and a scale.
    private func groups(_ layout: AdapterLayout) -> [Range<Int>] {
        switch scope {
        case .tensor: layout.tensors.indices.map { $0..<$0 + 1 }
        case .allTensors: layout.tensors.isEmpty ? [] : [layout.tensors.indices]
        }
    }

    /// The flat values of a group: its tensors lie one after another.
    private func range(_ group: Range<Int>, _ layout: AdapterLayout) -> Range<Int> {
        layout.offsets[group.lowerBound]..<layout.range(group.upperBound - 1).upperBound
    }

    func byteCounts(_ layout: AdapterLayout) -> ClosedRange<Int> {
        switch scope {
        case .tensor:
            SparsePayload.byteCounts(layout) { tensor in
                (SparsePayload.mostBits(kept: density.keptCount(of: tensor.count), of: tensor.count, signs: true) + 7) / 8
            }
        case .allTensors:
            // One power of two for all tensors is as good as theirs or worse, and each may end in a broken byte.
            SparsePayload.byteCounts(layout) { _ in 1 }.extended(
                by: (SparsePayload.mostBits(
                    kept: density.keptCount(of: layout.parameterCount), of: layout.parameterCount, signs: true) + 7) / 8)
        }
    }

    func encode(_ state: AdapterState, rounding: inout SeededGenerator?, path: Int32, _ writer: inout ByteWriter) {
        let layout = state.layout
        state.values.withUnsafeBufferPointer { values in
            for group in groups(layout) {
                let range = range(group, layout)
                let vector = UnsafeBufferPointer(rebasing: values[range])
                let tensors = group.map { index in
                    layout.range(index).lowerBound - range.lowerBound..<layout.range(index).upperBound - range.lowerBound
                }
                let kept = SparsePayload.largest(
                    density.keptCount(of: range.count), of: vector, tensors: tensors, floor: 0, path: path)
                let scale = scale(of: vector, tensors, kept, path)
                for (tensor, positions) in zip(tensors, kept) {
                    // A scale that is zero says nothing: no position is worth a bit.
                    SparsePayload.write(
                        scale == 0 ? [] : positions, of: UnsafeBufferPointer(rebasing: vector[tensor]), scale: scale, signs: true,
                        &writer)
                }
            }
        }
    }

    /// The scale of a group, rounded once; not finite if a value is not.
    private func scale(of vector: UnsafeBufferPointer<Float>, _ tensors: [Range<Int>], _ kept: [[UInt32]], _ path: Int32) -> Float
    {
        guard let base = vector.baseAddress else { return 0 }
        switch scale {
        case .meanMagnitude:
            let count = kept.reduce(0) { $0 + $1.count }
            guard count > 0 else { return 0 }
            let sum = zip(tensors, kept).reduce(0.0) {
                $0 + tributary_sum_magnitudes(base + $1.0.lowerBound, $1.1, $1.1.count)
            }
            return Float(sum / Double(count))
        case .deviations(let alpha):
            let (count, length) = (Double(vector.count), vector.count)
            var (sum, squares) = (0.0, 0.0)
            tributary_moments(path, base, length, 0, &sum, &squares)
            tributary_moments(path, base, length, sum / count, &sum, &squares)
            let scale = alpha * (squares / count).squareRoot()
            return scale.isFinite ? Float(min(scale, Double(Float.greatestFiniteMagnitude))) : Float(scale)
        }
    }

    func decode(
        _ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout, into values: UnsafeMutableBufferPointer<Float>, path: Int32
    ) throws(DecodeError) {
        let headers = try SparsePayload.readHeaders(payload, layout)
        for group in groups(layout) {
            let allowed = density.keptCount(of: range(group, layout).count)
            var total = 0
            var shared: Float?
            for index in group {
                let header = headers[index]
                total += header.kept
                guard header.kept <= layout.tensors[index].count, total <= allowed else {
                    throw .tooManyKept(tensor: index, kept: total, allowed: allowed)
                }
                let isScale = header.kept == 0 ? header.scale.bitPattern == 0 : header.scale > 0 && header.scale.isFinite
                guard isScale, header.kept == 0 || header.scale == shared ?? header.scale else {
                    throw .wrongHeader(tensor: index, field: "scale", value: "\(header.scale)")
                }
                if header.kept > 0 { shared = header.scale }
            }
        }
        for (index, header) in headers.enumerated() {
            guard header.kept > 0, let target = values.baseAddress else { continue }
            guard
                tributary_golomb_decode_signs(
                    payload.bytes(at: header.offset), header.byteCount, header.kept, header.parameter,
                    layout.tensors[index].count, header.scale, target + layout.offsets[index]) == 0
            else { throw .wrongCode(tensor: index) }
        }
    }
}
