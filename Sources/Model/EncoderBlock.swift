/// A block of BERT: attention over the whole sequence and a GELU part, each added to its input and then normed; forward and
/// backward.
///
///     q, k, v = maps(x)       a = x + o(attention(q, k, v))      m = norm1(a)
///     u = intermediate(m)     s = m + output(gelu(u))            y = norm2(s)

import CKernels
import Checkpoints
import LinearAlgebra
import Quantization

/// The sizes that every block of an encoder shares.
struct EncoderShape {
    let hidden: Int
    let intermediate: Int
    let attention: Attention
    let epsilon: Float
    /// Floats a token of the branches' u and h.
    let projectionWidth: Int
    let compute: ComputeType

    init(_ configuration: ModelConfiguration, projectionWidth: Int, compute: ComputeType) {
        hidden = configuration.hiddenSize
        intermediate = configuration.intermediateSize
        attention = Attention(
            headCount: configuration.headCount, keyValueHeadCount: configuration.headCount, headSize: configuration.headSize,
            isCausal: false, compute: compute)
        epsilon = configuration.encoder?.layerNormEpsilon ?? 0
        self.projectionWidth = projectionWidth
        self.compute = compute
    }
}

/// What a block's forward keeps for its backward, for each of `tokens` tokens.
final class EncoderRecord: ActivationRecord {
    /// The log of each softmax's sum, `[heads, tokens]`.
    var normalizers: UnsafeMutablePointer<Float> { part(0) }
    /// Mean and 1 / deviation of each row of a and of s.
    var attentionStatistics: UnsafeMutablePointer<Float> { part(1) }
    var outputStatistics: UnsafeMutablePointer<Float> { part(2) }
    var queries: UnsafeMutablePointer<Float> { part(3) }
    var keys: UnsafeMutablePointer<Float> { part(4) }
    var values: UnsafeMutablePointer<Float> { part(5) }
    /// O of attention.
    var attended: UnsafeMutablePointer<Float> { part(6) }
    /// a and s.
    var attentionSum: UnsafeMutablePointer<Float> { part(7) }
    var outputSum: UnsafeMutablePointer<Float> { part(8) }
    /// u.
    var inner: UnsafeMutablePointer<Float> { part(9) }
    var projections: UnsafeMutablePointer<Float> { part(10) }

    static func widths(_ shape: EncoderShape) -> RecordWidths {
        let hidden = shape.hidden
        return RecordWidths(
            exact: [shape.attention.headCount, 2, 2],
            rounded: [hidden, hidden, hidden, hidden, hidden, hidden, shape.intermediate, shape.projectionWidth])
    }

    func reserve(_ shape: EncoderShape, tokens: Int) { reserve(Self.widths(shape), tokens: tokens) }
}

/// Memory that blocks use one after another.
final class EncoderWorkspace {
    /// m `[tokens, hidden]`, gelu(u) `[tokens, intermediate]`.
    let middle = FloatBuffer()
    let product = FloatBuffer()
    /// Gradients of what a group of maps reads, of gelu(u), and of what attention reads and writes.
    let inputGradient = FloatBuffer()
    let productGradient = FloatBuffer()
    let attendedGradient = FloatBuffer()
    let queryGradient = FloatBuffer()
    let keyGradient = FloatBuffer()
    let valueGradient = FloatBuffer()
    let shares = FloatBuffer()
    let projectionGradients = FloatBuffer()
    let halves = HalfWorkspace()

    /// Bytes of everything here, forward and backward.
    static func byteCount(_ shape: EncoderShape, tokens: Int) -> Int {
        let (h, f) = (shape.hidden, shape.intermediate)
        let halves = shape.compute == .bfloat16 ? 2 * max(h, f) + 2 * h + 2 * shape.projectionWidth : 0
        return tokens * (4 * (8 * h + 2 * f + shape.projectionWidth) + 2 * halves)
    }

    func reserve(_ shape: EncoderShape, tokens: Int, backward: Bool) {
        let size = tokens * shape.hidden
        middle.reserve(size)
        product.reserve(tokens * shape.intermediate)
        guard backward else { return }
        for buffer in [inputGradient, attendedGradient, queryGradient, keyGradient, valueGradient] { buffer.reserve(size) }
        productGradient.reserve(tokens * shape.intermediate)
        shares.reserve(2 * size)
        projectionGradients.reserve(max(1, tokens * shape.projectionWidth))
    }
}

struct EncoderBlock {
    let shape: EncoderShape
    let norms: (attention: LayerNorm, output: LayerNorm)
    /// query, key, value, attention.output.dense, intermediate.dense, output.dense.
    let maps: [AdaptedMap]
    let tokens: Int
    let sequences: [Range<Int>]
    let record: EncoderRecord
    let workspace: EncoderWorkspace

    private var path: Int32 { KernelPath.active.rawValue }
    /// Whether products are computed in bfloat16: those of few tokens are bound by decoding.
    private var usesHalves: Bool { shape.compute == .bfloat16 && tokens >= FewTokens.limit }

    /// What some of the maps read.
    private enum Source {
        /// `[tokens, hidden]`.
        case values(UnsafePointer<Float>)
        /// m = norm1(a), which goes to `workspace.middle` too.
        case middle
        /// gelu(u).
        case activated

        func width(_ shape: EncoderShape) -> Int {
            if case .activated = self { return shape.intermediate }
            return shape.hidden
        }
    }

    /// Rows `range` of what maps read, rounded to bfloat16.
    private func fill(_ rows: HalfRows, _ range: Range<Int>, _ source: Source) {
        let target = rows.pointer + range.lowerBound * rows.stride
        let first = range.lowerBound * source.width(shape)
        switch source {
        case .values(let values): rows.round(values + first, lead: shape.hidden, rows: range, columns: shape.hidden)
        case .middle: norm1(range, halves: target, stride: rows.stride)
        case .activated:
            tributary_gelu_bf16(path, record.inner + first, range.count, shape.intermediate, target, rows.stride)
        }
    }

    /// Rows of m, and where `halves` is given the same rounded.
    private func norm1(_ range: Range<Int>, halves: UnsafeMutablePointer<UInt16>? = nil, stride: Int = 0) {
        let (hidden, first) = (shape.hidden, range.lowerBound * shape.hidden)
        tributary_layer_norm(
            path, record.attentionSum + first, norms.attention.weight, norms.attention.bias, range.count, hidden, shape.epsilon,
            workspace.middle.pointer + first, halves, stride, record.attentionStatistics + 2 * range.lowerBound)
    }

    /// What some of the maps read as floats.
    private func floats(_ source: Source) -> UnsafePointer<Float> {
        switch source {
        case .values(let values): return values
        case .middle:
            forTokens(tokens) { norm1($0) }
            return UnsafePointer(workspace.middle.pointer)
        case .activated:
            let (width, product) = (shape.intermediate, workspace.product.pointer)
            forTokens(tokens) { range in
                let first = range.lowerBound * width
                tributary_gelu(path, record.inner + first, range.count * width, product + first)
            }
            return UnsafePointer(product)
        }
    }

    /// Outputs of some of the maps, which read the same x.
    private func project(
        _ range: Range<Int>, _ source: Source, residual: UnsafePointer<Float>? = nil, into outputs: [UnsafeMutablePointer<Float>]
    ) {
        let group = Array(maps[range])
        guard usesHalves else {
            LinearMaps.forward(
                group, tokens: tokens, x: floats(source), residual: residual, projections: record.projections, into: outputs)
            return
        }
        HalfMaps.forward(
            group, tokens: tokens, residual: residual, projections: record.projections, into: outputs,
            workspace: workspace.halves
        ) { range, rows in fill(rows, range, source) }
    }

    /// y `[tokens, hidden]` from x; record and workspace have room for the tokens.
    func forward(_ x: UnsafePointer<Float>, into y: UnsafeMutablePointer<Float>) {
        project(0..<3, .values(x), into: [record.queries, record.keys, record.values])
        shape.attention.forward(
            queries: record.queries, keys: record.keys, values: record.values, tokens: tokens, sequences: sequences,
            output: record.attended, normalizers: record.normalizers)
        project(3..<4, .values(record.attended), residual: x, into: [record.attentionSum])
        project(4..<5, .middle, into: [record.inner])
        project(5..<6, .activated, residual: workspace.middle.pointer, into: [record.outputSum])
        let hidden = shape.hidden
        forTokens(tokens) { range in
            let first = range.lowerBound * hidden
            tributary_layer_norm(
                path, record.outputSum + first, norms.output.weight, norms.output.bias, range.count, hidden, shape.epsilon,
                y + first, nil, 0, record.outputStatistics + 2 * range.lowerBound)
        }
    }

    /// Turns dy in `residualGradient` into dx, and adds to the gradients of trained tensors; see `BlockStack.backward`.
    func backward(
        _ x: UnsafePointer<Float>, residualGradient: UnsafeMutablePointer<Float>, needsInput: Bool, gradient: GradientTarget?,
        dense: [Int: UnsafeMutablePointer<Float>]
    ) {
        let (path, hidden, intermediate) = (path, shape.hidden, shape.intermediate)
        func backward(
            _ range: Range<Int>, _ source: Source, dy: [UnsafePointer<Float>], dx: UnsafeMutablePointer<Float>?
        ) {
            if usesHalves {
                let rows = workspace.halves.inputs
                rows.reserve(rows: tokens, columns: source.width(shape))
                forTokens(tokens) { fill(rows, $0, source) }
            }
            let needsFloats = !usesHalves || range.contains { dense[$0] != nil }
            LinearMaps.backward(
                in: usesHalves ? workspace.halves : nil,
                Array(maps[range]), tokens: tokens, x: needsFloats ? floats(source) : x, projections: record.projections, dy: dy,
                projectionGradients: workspace.projectionGradients.pointer, dx: dx, gradient: gradient,
                dense: range.compactMap { place in dense[place].map { (map: place - range.lowerBound, values: $0) } })
        }
        /// The gradient of a norm's input in place of that of its output, to which `added` is added first.
        func backward(
            _ norm: LayerNorm, _ sum: UnsafePointer<Float>, _ statistics: UnsafePointer<Float>, added: UnsafePointer<Float>?
        ) {
            forTokens(tokens) { range in
                let first = range.lowerBound * hidden
                tributary_layer_norm_backward(
                    path, sum + first, norm.weight, statistics + 2 * range.lowerBound, residualGradient + first,
                    added.map { $0 + first }, range.count, hidden, residualGradient + first)
            }
        }

        let inputGradient = workspace.inputGradient.pointer
        let productGradient = workspace.productGradient.pointer
        backward(norms.output, record.outputSum, record.outputStatistics, added: nil)
        backward(5..<6, .activated, dy: [residualGradient], dx: productGradient)
        forTokens(tokens) { range in
            let first = range.lowerBound * intermediate
            tributary_gelu_backward(path, record.inner + first, productGradient + first, range.count * intermediate)
        }
        backward(4..<5, .middle, dy: [productGradient], dx: inputGradient)
        backward(norms.attention, record.attentionSum, record.attentionStatistics, added: inputGradient)

        backward(3..<4, .values(record.attended), dy: [residualGradient], dx: workspace.attendedGradient.pointer)
        let dy = [workspace.queryGradient.pointer, workspace.keyGradient.pointer, workspace.valueGradient.pointer]
        shape.attention.backward(
            queries: record.queries, keys: record.keys, values: record.values, tokens: tokens, sequences: sequences,
            output: record.attended, normalizers: record.normalizers, outputGradient: workspace.attendedGradient.pointer,
            shares: workspace.shares.pointer, queryGradient: dy[0], keyGradient: dy[1], valueGradient: dy[2])
        backward(0..<3, .values(x), dy: dy.map { UnsafePointer($0) }, dx: needsInput ? inputGradient : nil)
        guard needsInput else { return }
        forTokens(tokens) { range in
            let first = range.lowerBound * hidden
            tributary_add(path, residualGradient + first, inputGradient + first, range.count * hidden)
        }
    }
}
