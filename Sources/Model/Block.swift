/// A transformer block: attention and gated part, each behind a norm and beside a residual; forward and backward.
///
///     n1 = norm(x)     q, k, v = maps(n1), normed by head in Qwen3, rotated     x' = x  + o(attention(q, k, v))
///     n2 = norm(x')    g, u    = maps(n2)                                       y  = x' + down(silu(g) u)

import CKernels
import Checkpoints
import LinearAlgebra
import Quantization

/// The sizes that every block of a model shares.
struct BlockShape {
    let hidden: Int
    let intermediate: Int
    let attention: Attention
    let epsilon: Float
    /// Floats a token of the branches' u and h.
    let projectionWidth: Int
    let hasQueryKeyNorm: Bool
    let compute: ComputeType
    /// Whether backward reads what attention wrote: only for the gradient of an A, or of a whole matrix, that reads it.
    let keepsAttended: Bool

    init(_ configuration: ModelConfiguration, projectionWidth: Int, compute: ComputeType, keepsAttended: Bool) {
        self.compute = compute
        self.keepsAttended = keepsAttended
        hidden = configuration.hiddenSize
        intermediate = configuration.intermediateSize
        attention = Attention(
            headCount: configuration.headCount, keyValueHeadCount: configuration.keyValueHeadCount,
            headSize: configuration.headSize, compute: compute)
        epsilon = configuration.rmsNormEpsilon
        self.projectionWidth = projectionWidth
        hasQueryKeyNorm = configuration.queryKeyNorm
    }

    var queryWidth: Int { attention.queryWidth }
    var keyWidth: Int { attention.keyWidth }

}

/// What a block's forward keeps for its backward, for each of `tokens` tokens.
final class BlockRecord: ActivationRecord {
    /// 1 / rms of x and x'.
    var inputInverses: UnsafeMutablePointer<Float> { part(0) }
    var middleInverses: UnsafeMutablePointer<Float> { part(1) }
    /// The log of each softmax's sum, `[heads, tokens]`.
    var normalizers: UnsafeMutablePointer<Float> { part(2) }
    /// Of queries and keys before their norm (Qwen3), 1 / rms of each head.
    var queryInverses: UnsafeMutablePointer<Float> { part(3) }
    var keyInverses: UnsafeMutablePointer<Float> { part(4) }
    var queries: UnsafeMutablePointer<Float> { part(5) }
    var keys: UnsafeMutablePointer<Float> { part(6) }
    var values: UnsafeMutablePointer<Float> { part(7) }
    /// Queries and keys before their norm (Qwen3).
    var plainQueries: UnsafeMutablePointer<Float> { part(8) }
    var plainKeys: UnsafeMutablePointer<Float> { part(9) }
    /// x'.
    var middle: UnsafeMutablePointer<Float> { part(10) }
    var gate: UnsafeMutablePointer<Float> { part(11) }
    var up: UnsafeMutablePointer<Float> { part(12) }
    var projections: UnsafeMutablePointer<Float> { part(13) }
    /// O of attention.
    var attended: UnsafeMutablePointer<Float> { part(14) }

    static func widths(_ shape: BlockShape) -> RecordWidths {
        let normed = shape.hasQueryKeyNorm ? 1 : 0
        let (q, k) = (shape.queryWidth, shape.keyWidth)
        let (heads, keyHeads) = (shape.attention.headCount, shape.attention.keyValueHeadCount)
        var widths = RecordWidths(
            exact: [1, 1, heads, normed * heads, normed * keyHeads],
            rounded: [
                q, k, k, normed * q, normed * k, shape.hidden, shape.intermediate, shape.intermediate, shape.projectionWidth,
            ])
        if shape.keepsAttended { widths.rounded.append(q) } else { widths.passing = [q] }
        return widths
    }

    func reserve(_ shape: BlockShape, tokens: Int) { reserve(Self.widths(shape), tokens: tokens) }
}

/// Memory that blocks use one after another.
final class BlockWorkspace {
    /// Normed inputs `[tokens, hidden]`, silu(g) u `[tokens, intermediate]`.
    let normed = FloatBuffer()
    let product = FloatBuffer()
    /// Gradients of the same, and of what attention reads and writes.
    let normedGradient = FloatBuffer()
    let productGradient = FloatBuffer()
    let attendedGradient = FloatBuffer()
    let queryGradient = FloatBuffer()
    let keyGradient = FloatBuffer()
    let valueGradient = FloatBuffer()
    let shares = FloatBuffer()
    let projectionGradients = FloatBuffer()
    let halves = HalfWorkspace()

    /// Bytes of everything here, forward and backward.
    static func byteCount(_ shape: BlockShape, tokens: Int) -> Int {
        let (h, f, q, k) = (shape.hidden, shape.intermediate, shape.queryWidth, shape.keyWidth)
        let floats = 2 * h + 2 * f + 4 * q + 2 * k + shape.projectionWidth
        // Rows of x, and of dy of up to three maps.
        let halves = shape.compute == .bfloat16 ? max(h, f, q) + max(h, f, q) + max(f, k) + k + 2 * shape.projectionWidth : 0
        return tokens * (4 * floats + 2 * halves)
    }

    func reserve(_ shape: BlockShape, tokens: Int, backward: Bool) {
        normed.reserve(tokens * shape.hidden)
        product.reserve(tokens * shape.intermediate)
        guard backward else { return }
        normedGradient.reserve(tokens * shape.hidden)
        productGradient.reserve(tokens * shape.intermediate)
        attendedGradient.reserve(tokens * shape.queryWidth)
        queryGradient.reserve(tokens * shape.queryWidth)
        keyGradient.reserve(tokens * shape.keyWidth)
        valueGradient.reserve(tokens * shape.keyWidth)
        shares.reserve(2 * tokens * shape.queryWidth)
        projectionGradients.reserve(max(1, tokens * shape.projectionWidth))
    }
}

/// Where each token stands: sequences, positions, and the angles of the positions.
struct TokenPlaces {
    let count: Int
    let sequences: [Range<Int>]
    let positions: UnsafePointer<Int32>
    let cosines: UnsafePointer<Float>
    let sines: UnsafePointer<Float>
}

struct Block {
    let shape: BlockShape
    let layer: LanguageModel.Layer
    /// q, k, v, o, gate, up, down.
    let maps: [AdaptedMap]

    private var path: Int32 { KernelPath.active.rawValue }

    private func norm(
        _ x: UnsafePointer<Float>, _ weights: [Float], tokens: Int, into y: UnsafeMutablePointer<Float>,
        inverses: UnsafeMutablePointer<Float>
    ) {
        let (path, hidden, epsilon) = (path, shape.hidden, shape.epsilon)
        forTokens(tokens) { range in
            let first = range.lowerBound * hidden
            tributary_rms_norm(
                path, x + first, hidden, weights, range.count, hidden, epsilon, y + first, hidden, inverses + range.lowerBound)
        }
    }

    /// q and k of each token, normed by head where the model does so, and rotated.
    private func place(_ record: BlockRecord, _ places: TokenPlaces) {
        let (path, d, epsilon) = (path, shape.attention.headSize, shape.epsilon)
        for (heads, width, normWeights, plain, rotated, inverses) in [
            (
                shape.attention.headCount, shape.queryWidth, layer.queryNorm, record.plainQueries, record.queries,
                record.queryInverses
            ),
            (shape.attention.keyValueHeadCount, shape.keyWidth, layer.keyNorm, record.plainKeys, record.keys, record.keyInverses),
        ] {
            forTokens(places.count) { range in
                let first = range.lowerBound * width
                if let normWeights {
                    tributary_rms_norm(
                        path, plain + first, d, normWeights, range.count * heads, d, epsilon, rotated + first, d,
                        inverses + range.lowerBound * heads)
                }
                tributary_rotate(
                    path, rotated + first, width, range.count, heads, d, places.cosines, places.sines,
                    places.positions + range.lowerBound, 1)
            }
        }
    }

    /// silu(g) u.
    private func gated(_ record: BlockRecord, tokens: Int, into product: UnsafeMutablePointer<Float>) {
        let (path, width) = (path, shape.intermediate)
        forTokens(tokens) { range in
            let first = range.lowerBound * width
            tributary_swiglu(path, record.gate + first, record.up + first, range.count * width, product + first)
        }
    }

    /// Whether the products of so many tokens are computed in bfloat16: of few they are bound by decoding.
    private func usesHalves(_ tokens: Int) -> Bool { shape.compute == .bfloat16 && tokens >= FewTokens.limit }

    /// What some of the maps read.
    private enum Source {
        case values(UnsafePointer<Float>, width: Int)
        /// norm(x) with these weights; 1 / rms goes to `inverses`.
        case normed(UnsafePointer<Float>, weights: [Float], inverses: UnsafeMutablePointer<Float>)
        /// silu(g) u of the record.
        case gated
    }

    /// Outputs of some of the maps, which read the same x.
    private func project(
        _ range: Range<Int>, _ source: Source, residual: UnsafePointer<Float>? = nil, tokens: Int, record: BlockRecord,
        workspace: BlockWorkspace, into outputs: [UnsafeMutablePointer<Float>]
    ) {
        let group = Array(maps[range])
        guard usesHalves(tokens) else {
            let x = present(source, tokens: tokens, record: record, workspace: workspace, asFloats: true)
            LinearMaps.forward(
                group, tokens: tokens, x: x, residual: residual, projections: record.projections, into: outputs)
            return
        }
        HalfMaps.forward(
            group, tokens: tokens, residual: residual, projections: record.projections, into: outputs,
            workspace: workspace.halves
        ) { range, rows in fill(rows, range, source, record: record) }
    }

    /// Rows `range` of what maps read, rounded to bfloat16.
    private func fill(_ rows: HalfRows, _ range: Range<Int>, _ source: Source, record: BlockRecord) {
        let target = rows.pointer + range.lowerBound * rows.stride
        switch source {
        case .values(let values, let width):
            rows.round(values + range.lowerBound * width, lead: width, rows: range, columns: width)
        case .normed(let values, let weights, let inverses):
            let width = shape.hidden
            tributary_rms_norm_bf16(
                path, values + range.lowerBound * width, width, weights, range.count, width, shape.epsilon, target, rows.stride,
                inverses + range.lowerBound)
        case .gated:
            let first = range.lowerBound * shape.intermediate
            tributary_swiglu_bf16(
                path, record.gate + first, record.up + first, range.count, shape.intermediate, target, rows.stride)
        }
    }

    /// What some of the maps read as floats, or rounded in `workspace.halves.inputs`, for their backward pass.
    private func present(
        _ source: Source, tokens: Int, record: BlockRecord, workspace: BlockWorkspace, asFloats: Bool
    ) -> UnsafePointer<Float> {
        if usesHalves(tokens) {
            let rows = workspace.halves.inputs
            switch source {
            case .values(_, let width): rows.reserve(rows: tokens, columns: width)
            case .normed: rows.reserve(rows: tokens, columns: shape.hidden)
            case .gated: rows.reserve(rows: tokens, columns: shape.intermediate)
            }
            forTokens(tokens) { range in fill(rows, range, source, record: record) }
            if !asFloats { return UnsafePointer(workspace.normed.pointer) }
        }
        switch source {
        case .values(let values, _): return values
        case .normed(let values, let weights, let inverses):
            norm(values, weights, tokens: tokens, into: workspace.normed.pointer, inverses: inverses)
            return UnsafePointer(workspace.normed.pointer)
        case .gated:
            gated(record, tokens: tokens, into: workspace.product.pointer)
            return UnsafePointer(workspace.product.pointer)
        }
    }

    /// y `[tokens, hidden]` from x; `record` and `workspace` have room for the tokens.
    ///
    /// - Parameter cache: keys and values of earlier tokens of the only sequence; the new ones are added
    func forward(
        _ x: UnsafePointer<Float>, _ places: TokenPlaces, record: BlockRecord, workspace: BlockWorkspace,
        cache: KeyValueCache? = nil, into y: UnsafeMutablePointer<Float>
    ) {
        let tokens = places.count
        project(
            0..<3, .normed(x, weights: layer.attentionNorm, inverses: record.inputInverses), tokens: tokens, record: record,
            workspace: workspace,
            into: [
                shape.hasQueryKeyNorm ? record.plainQueries : record.queries,
                shape.hasQueryKeyNorm ? record.plainKeys : record.keys,
                record.values,
            ])
        place(record, places)
        if let cache {
            let past = cache.count
            cache.append(keys: record.keys, values: record.values, tokens: tokens)
            if tokens < FewTokens.limit {
                shape.attention.forwardFew(
                    queries: record.queries, keys: cache.keys.pointer, values: cache.values.pointer, tokens: tokens, past: past,
                    output: record.attended)
            } else {
                shape.attention.forward(
                    queries: record.queries, keys: cache.keys.pointer, values: cache.values.pointer, tokens: tokens,
                    sequences: [0..<tokens], past: past, output: record.attended, normalizers: nil)
            }
        } else {
            shape.attention.forward(
                queries: record.queries, keys: record.keys, values: record.values, tokens: tokens, sequences: places.sequences,
                output: record.attended, normalizers: record.normalizers)
        }
        project(
            3..<4, .values(record.attended, width: shape.queryWidth), residual: x, tokens: tokens, record: record,
            workspace: workspace,
            into: [record.middle])
        project(
            4..<6, .normed(record.middle, weights: layer.gatedNorm, inverses: record.middleInverses), tokens: tokens,
            record: record, workspace: workspace, into: [record.gate, record.up])
        project(
            6..<7, .gated, residual: record.middle, tokens: tokens, record: record, workspace: workspace,
            into: [y])
    }

    /// Turns dy in `residualGradient` into dx, and adds to the gradients of trained tensors.
    ///
    /// The record's gate and up become their gradients.
    /// - Parameters:
    ///   - x: the block's input, as in forward
    ///   - needsInput: whether anything below is trained; if not, dx is not computed
    ///   - dense: dW of some maps, by their place in the block
    func backward(
        _ x: UnsafePointer<Float>, _ places: TokenPlaces, record: BlockRecord, workspace: BlockWorkspace,
        residualGradient: UnsafeMutablePointer<Float>, needsInput: Bool, gradient: GradientTarget?,
        dense: [Int: UnsafeMutablePointer<Float>]
    ) {
        let tokens = places.count
        let (path, hidden, intermediate) = (path, shape.hidden, shape.intermediate)
        let normedGradient = workspace.normedGradient.pointer
        func backward(
            _ range: Range<Int>, _ source: Source, dy: [UnsafePointer<Float>], dx: UnsafeMutablePointer<Float>?
        ) {
            let x = present(source, tokens: tokens, record: record, workspace: workspace, asFloats: !dense.isEmpty)
            LinearMaps.backward(
                in: usesHalves(tokens) ? workspace.halves : nil,
                Array(maps[range]), tokens: tokens, x: x, projections: record.projections, dy: dy,
                projectionGradients: workspace.projectionGradients.pointer, dx: dx, gradient: gradient,
                dense: range.compactMap { place in dense[place].map { (map: place - range.lowerBound, values: $0) } })
        }
        func addNormGradient(_ x: UnsafePointer<Float>, _ weights: [Float], _ inverses: UnsafePointer<Float>) {
            forTokens(tokens) { range in
                let first = range.lowerBound * hidden
                tributary_rms_norm_backward(
                    path, x + first, hidden, weights, inverses + range.lowerBound, normedGradient + first, hidden, range.count,
                    hidden,
                    residualGradient + first, hidden, 1)
            }
        }

        let productGradient = workspace.productGradient.pointer
        backward(6..<7, .gated, dy: [residualGradient], dx: productGradient)
        forTokens(tokens) { range in
            let first = range.lowerBound * intermediate
            tributary_swiglu_backward(
                path, record.gate + first, record.up + first, productGradient + first, range.count * intermediate)
        }
        backward(
            4..<6, .normed(record.middle, weights: layer.gatedNorm, inverses: record.middleInverses),
            dy: [record.gate, record.up], dx: normedGradient)
        addNormGradient(record.middle, layer.gatedNorm, record.middleInverses)

        backward(
            3..<4, .values(record.attended, width: shape.queryWidth), dy: [residualGradient],
            dx: workspace.attendedGradient.pointer)
        let queryGradient = workspace.queryGradient.pointer
        let keyGradient = workspace.keyGradient.pointer
        shape.attention.backward(
            queries: record.queries, keys: record.keys, values: record.values, tokens: tokens, sequences: places.sequences,
            output: shape.keepsAttended ? record.attended : nil, normalizers: record.normalizers,
            outputGradient: workspace.attendedGradient.pointer,
            shares: workspace.shares.pointer, queryGradient: queryGradient, keyGradient: keyGradient,
            valueGradient: workspace.valueGradient.pointer)
        let d = shape.attention.headSize
        for (heads, width, normWeights, plain, inverses, target) in [
            (
                shape.attention.headCount, shape.queryWidth, layer.queryNorm, record.plainQueries, record.queryInverses,
                queryGradient
            ),
            (
                shape.attention.keyValueHeadCount, shape.keyWidth, layer.keyNorm, record.plainKeys, record.keyInverses,
                keyGradient
            ),
        ] {
            forTokens(tokens) { range in
                let first = range.lowerBound * width
                tributary_rotate(
                    path, target + first, width, range.count, heads, d, places.cosines, places.sines,
                    places.positions + range.lowerBound, -1)
                if let normWeights {
                    tributary_rms_norm_backward(
                        path, plain + first, d, normWeights, inverses + range.lowerBound * heads, target + first, d,
                        range.count * heads, d, target + first, d, 0)
                }
            }
        }
        backward(
            0..<3, .normed(x, weights: layer.attentionNorm, inverses: record.inputInverses),
            dy: [queryGradient, keyGradient, workspace.valueGradient.pointer],
            dx: needsInput ? normedGradient : nil)
        if needsInput { addNormGradient(x, layer.attentionNorm, record.inputInverses) }
    }
}
