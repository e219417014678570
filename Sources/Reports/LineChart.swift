/// A chart of one line a run, as SVG that stands inside a page.

/// Points of several runs over common axes. Lines differ in colour and in dash pattern, and each ends in its run's number.
public struct LineChart: Sendable {
    public struct Point: Sendable, Equatable {
        public let x: Double
        /// Nil is a gap in the line.
        public let y: Double?
        /// What a reader who points at it is told.
        public let note: String

        public init(x: Double, y: Double?, note: String) {
            self.x = x
            self.y = y
            self.note = note
        }
    }

    public struct Line: Sendable, Equatable {
        /// From 0: which colour, dashes and number it has on the whole page.
        public let run: Int
        public let points: [Point]

        public init(run: Int, points: [Point]) {
            self.run = run
            self.points = points
        }
    }

    public let title: String
    public let xTitle: String
    public let yTitle: String
    public let x: Axis
    public let y: Axis
    /// Only those with a point.
    public let lines: [Line]

    /// - Parameter makeX: the horizontal axis for all values that are shown
    /// - Returns: nil if no line has a point
    public init?(
        title: String, xTitle: String, yTitle: String, lines: [Line], x makeX: ([Double]) -> Axis, y makeY: ([Double]) -> Axis
    ) {
        self.lines = lines.filter { line in line.points.contains { $0.y != nil } }
        let points = self.lines.flatMap(\.points).filter { $0.y != nil }
        guard !points.isEmpty else { return nil }
        self.title = title
        self.xTitle = xTitle
        self.yTitle = yTitle
        x = makeX(points.map(\.x))
        y = makeY(points.compactMap(\.y))
    }

    // The drawing's own units: at a phone's width they are about a pixel each.
    private static let (width, height) = (400.0, 280.0)
    private static let (left, right, top, bottom) = (52.0, 374.0, 12.0, 232.0)
    /// Between numbers at the ends of lines, unless there are too many.
    private static let labelDistance = 12.0
    /// More points than this are a line without markers.
    private static let markerLimit = 40

    static let colors = 8
    /// Lengths of strokes and gaps; the first is solid. Their count and that of the colours have a large common multiple.
    static let dashes = ["", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2 1 2", "1 2"]

    /// Attributes that make a line its run's.
    static func style(run: Int) -> String {
        let dash = dashes[run % dashes.count]
        return "class=\"line color\(run % colors)\"" + (dash.isEmpty ? "" : " stroke-dasharray=\"\(dash)\"")
    }

    public var svg: String {
        var out =
            "<svg viewBox=\"0 0 \(Self.number(Self.width)) \(Self.number(Self.height))\" role=\"img\" aria-label=\"\(NumberText.escaped("\(title): \(yTitle) over \(xTitle)"))\">\n"
        for tick in y.ticks {
            let position = vertical(tick.value)
            out += "<path class=\"grid\" d=\"M\(Self.number(Self.left)) \(position)H\(Self.number(Self.right))\"/>"
            out +=
                "<text x=\"\(Self.number(Self.left - 5))\" y=\"\(position)\" dy=\"0.35em\" text-anchor=\"end\">\(NumberText.escaped(tick.label))</text>\n"
        }
        for tick in x.ticks {
            let position = horizontal(tick.value)
            out += "<path class=\"grid\" d=\"M\(position) \(Self.number(Self.top))V\(Self.number(Self.bottom))\"/>"
            out +=
                "<text x=\"\(position)\" y=\"\(Self.number(Self.bottom + 15))\" text-anchor=\"middle\">\(NumberText.escaped(tick.label))</text>\n"
        }
        let middle = Self.number((Self.left + Self.right) / 2)
        out +=
            "<text x=\"\(middle)\" y=\"\(Self.number(Self.bottom + 34))\" text-anchor=\"middle\">\(NumberText.escaped(xTitle))</text>\n"
        let rise = Self.number((Self.top + Self.bottom) / 2)
        out +=
            "<text transform=\"translate(12 \(rise)) rotate(-90)\" text-anchor=\"middle\">\(NumberText.escaped(yTitle))</text>\n"
        for line in lines { out += drawing(line) }
        out += endings()
        return out + "</svg>"
    }

    /// The line with its gaps, and a marker at each point that can be pointed at.
    private func drawing(_ line: Line) -> String {
        var path = ""
        var markers = ""
        var isOpen = false
        let shown = placed(line)
        for (index, place) in shown.enumerated() {
            guard let place else {
                isOpen = false
                continue
            }
            path += "\(isOpen ? "L" : "M")\(place.x) \(place.y)"
            isOpen = true
            let isAlone = (index == 0 || shown[index - 1] == nil) && (index == shown.count - 1 || shown[index + 1] == nil)
            if shown.count <= Self.markerLimit || isAlone {
                markers +=
                    "<circle class=\"dot color\(line.run % Self.colors)\" cx=\"\(place.x)\" cy=\"\(place.y)\" r=\"2.2\"><title>\(NumberText.escaped(line.points[index].note))</title></circle>\n"
            }
        }
        return "<path \(Self.style(run: line.run)) d=\"\(path)\"/>\n" + markers
    }

    private func placed(_ line: Line) -> [(x: String, y: String)?] {
        line.points.map { point in
            guard let value = point.y, x.position(point.x) != nil else { return nil }
            return (horizontal(point.x), vertical(value))
        }
    }

    /// Each run's number at the right edge, with a thin line to where its own line ends.
    private func endings() -> String {
        var ends: [(run: Int, x: String, y: Double)] = []
        for line in lines {
            guard let last = line.points.last(where: { $0.y != nil && x.position($0.x) != nil }), let value = last.y else {
                continue
            }
            ends.append((line.run, horizontal(last.x), place(value)))
        }
        ends.sort { ($0.y, $0.run) < ($1.y, $1.run) }
        let places = Self.spread(ends.map(\.y), distance: Self.labelDistance, from: Self.top, to: Self.bottom)
        return zip(ends, places).map { end, place in
            let edge = Self.number(Self.right + 8)
            return
                "<path class=\"leader\" d=\"M\(end.x) \(Self.number(end.y))L\(edge) \(Self.number(place))\"/><text class=\"number\" x=\"\(Self.number(Self.right + 10))\" y=\"\(Self.number(place))\" dy=\"0.35em\">\(end.run + 1)</text>\n"
        }.joined()
    }

    /// Moves ascending places apart, no further than needed, within the bounds; closer than asked if there is no room.
    static func spread(_ places: [Double], distance: Double, from low: Double, to high: Double) -> [Double] {
        guard places.count > 1 else { return places }
        let distance = min(distance, (high - low) / Double(places.count - 1))
        var moved = places
        for index in moved.indices.dropFirst() { moved[index] = max(moved[index], moved[index - 1] + distance) }
        moved[moved.count - 1] = min(moved[moved.count - 1], high)
        for index in moved.indices.dropLast().reversed() { moved[index] = min(moved[index], moved[index + 1] - distance) }
        return moved
    }

    private func horizontal(_ value: Double) -> String {
        Self.number(Self.left + (x.position(value) ?? 0) * (Self.right - Self.left))
    }

    private func place(_ value: Double) -> Double { Self.bottom - (y.position(value) ?? 0) * (Self.bottom - Self.top) }

    private func vertical(_ value: Double) -> String { Self.number(place(value)) }

    /// A coordinate, to a tenth of a unit.
    private static func number(_ value: Double) -> String {
        let text = NumberText.decimal(value, 1)
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }
}
