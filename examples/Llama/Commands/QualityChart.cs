using System.Globalization;
using Mustafar.Models.Evaluation;
using ScottPlot;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Quality against bytes as a picture: how much perplexity each setting adds, in the colour of its family, and which settings no other one
/// beats in both.</summary>
internal static class QualityChart
{
    private const int Width = 1300;
    private const int Height = 800;
    private const float LabelSize = 13;

    // What adds less than this share, or nothing, is drawn there.
    private const double Floor = 1e-4;

    // Farther away than so many pixels a label has a line to its point.
    private const double LineDistance = 24;

    private static readonly double[] s_ticks = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000];

    /// <summary>Draws the picture.</summary>
    /// <param name="units">Measured perplexities, of the dense setting too.</param>
    /// <param name="path">The file.</param>
    public static void Write(IReadOnlyCollection<EvaluationUnit> units, string path)
    {
        double dense = units.First(unit => unit.Setting.Options is null).Value("perplexity");
        Point[] points = [.. units.Where(unit => unit.Setting.Options is not null).Select(unit => Point.Of(unit, dense))];
        Plot plot = new();
        if (points.Length > 0)
        {
            Draw(plot, points);
        }

        plot.XLabel("bytes of the cache, % of dense fp16");
        plot.YLabel("perplexity above that of the dense cache");
        plot.Title(string.Create(CultureInfo.InvariantCulture, $"Quality against bytes: better is lower and farther left (dense: perplexity {dense:F3})"));
        plot.SavePng(path, Width, Height);
    }

    /// <summary>The points that no other one beats in bytes and loss, by bytes.</summary>
    /// <param name="points">Bytes and losses.</param>
    public static IReadOnlyList<(double Bytes, double Loss)> Front(IEnumerable<(double Bytes, double Loss)> points)
    {
        List<(double Bytes, double Loss)> front = [];
        foreach ((double Bytes, double Loss) point in points.OrderBy(point => point.Bytes).ThenBy(point => point.Loss))
        {
            if (front.Count == 0 || point.Loss < front[^1].Loss)
            {
                front.Add(point);
            }
        }

        return front;
    }

    private static void Draw(Plot plot, Point[] points)
    {
        // Simulated formats are no choice.
        (double Bytes, double Loss)[] front = [.. Front(points.Where(point => point.Family != SettingFamily.Simulated).Select(point => (point.X, point.Y)))];
        if (front.Length > 1)
        {
            ScottPlot.Plottables.Scatter line = plot.Add.ScatterLine(front.Select(point => point.Bytes).ToArray(), front.Select(point => point.Loss).ToArray());
            (line.Color, line.LineWidth, line.LinePattern, line.LegendText) = (Colors.Gray, 2, LinePattern.Dashed, "no setting is smaller and better");
        }

        foreach (IGrouping<SettingFamily, Point> family in points.GroupBy(point => point.Family).OrderBy(family => family.Key))
        {
            ScottPlot.Plottables.Scatter markers = plot.Add.ScatterPoints(family.Select(point => point.X).ToArray(), family.Select(point => point.Y).ToArray());
            (markers.Color, markers.MarkerSize, markers.MarkerShape) = (ColorOf(family.Key), 11, family.Key == SettingFamily.Simulated ? MarkerShape.OpenCircle : MarkerShape.FilledCircle);
            (markers.MarkerLineWidth, markers.LegendText) = (2, SettingFamilies.Describe(family.Key));
        }

        plot.Axes.Margins(0.08, 0.12);
        plot.Axes.AutoScale();
        plot.Axes.Left.SetTicks([.. s_ticks.Select(Math.Log10)], [.. s_ticks.Select(tick => (100 * tick).ToString("0.##", CultureInfo.InvariantCulture) + " %")]);
        plot.ShowLegend(Edge.Bottom);
        AddLabels(plot, points);
    }

    private static void AddLabels(Plot plot, Point[] points)
    {
        // Pixels are known once something was drawn.
        plot.RenderInMemory(Width, Height);
        PixelRect data = plot.RenderManager.LastRender.DataRect;
        using Paint paint = Paint.NewDisposablePaint();
        LabelStyle style = new() { FontSize = LabelSize };
        (double X, double Y)[] places = [.. points.Select(point => plot.GetPixel(new Coordinates(point.X, point.Y))).Select(pixel => ((double)pixel.X, (double)pixel.Y))];
        (double Width, double Height)[] sizes = [.. points.Select(point => style.Measure(point.Name, paint)).Select(size => ((double)size.Width, (double)size.Height))];
        Box[] boxes = LabelPlacement.Place(places, sizes, new Box(data.Left, data.Top, data.Width, data.Height));
        for (int i = 0; i < points.Length; i++)
        {
            (double x, double y) = (boxes[i].Left + (boxes[i].Width / 2), boxes[i].Top + (boxes[i].Height / 2));
            Coordinates centre = plot.GetCoordinates((float)x, (float)y);
            if (boxes[i].DistanceTo(places[i]) > LineDistance)
            {
                ScottPlot.Plottables.LinePlot line = plot.Add.Line(points[i].X, points[i].Y, centre.X, centre.Y);
                line.Color = Colors.LightGray;
                plot.MoveToBack(line);
            }

            ScottPlot.Plottables.Text label = plot.Add.Text(points[i].Name, centre);
            (label.LabelFontColor, label.LabelFontSize, label.LabelAlignment) = (ColorOf(points[i].Family), LabelSize, Alignment.MiddleCenter);
        }
    }

    private static Color ColorOf(SettingFamily family) => new ScottPlot.Palettes.Category10().GetColor((int)family);

    // x: percent of bytes; y: logarithm of the share that perplexity grows by.
    private sealed record Point(string Name, SettingFamily Family, double X, double Y)
    {
        public static Point Of(EvaluationUnit unit, double dense) => new(
            unit.Setting.Name,
            SettingFamilies.Of(unit.Setting),
            100 * unit.Value("bytes_ratio"),
            Math.Log10(Math.Max(Floor, (unit.Value("perplexity") / dense) - 1)));
    }
}
