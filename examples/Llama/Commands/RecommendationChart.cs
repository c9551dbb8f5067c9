using System.Globalization;
using Mustafar.Models.Evaluation;
using ScottPlot;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Chart of a recommended cache setting: what each format loses in each layer, and which was chosen.</summary>
internal static class RecommendationChart
{
    private const int Width = 1200;
    private const int Height = 640;

    /// <summary>Draws the losses over the bytes, keys on the left and values on the right, a line for each layer.</summary>
    /// <param name="recommendation">What was found.</param>
    /// <param name="directory">Where recommendation.png is written; one that is there is replaced.</param>
    /// <returns>What could not be drawn, and why: a machine may have no fonts, and results matter more.</returns>
    public static IReadOnlyList<string> Write(CacheRecommendation recommendation, string directory) =>
        Charts.Draw("recommendation.png", directory, path =>
        {
            Multiplot plots = new();
            plots.AddPlots(2);
            plots.Layout = new ScottPlot.MultiplotLayouts.Columns();
            Add(plots.GetPlot(0), recommendation, isKeys: true);
            Add(plots.GetPlot(1), recommendation, isKeys: false);
            plots.SavePng(path, Width, Height);
        }) is string problem ? [problem] : [];

    private static void Add(Plot plot, CacheRecommendation recommendation, bool isKeys)
    {
        foreach (LayerChoice layer in recommendation.Layers)
        {
            FormatLoss[] losses =
            [
                .. recommendation.Losses.Where(loss => loss.Layer == layer.Layer && loss.IsKeys == isKeys && loss.Loss is > 0 and < 100)
                    .OrderBy(loss => loss.BytesRatio),
            ];
            if (losses.Length == 0)
            {
                continue;
            }

            ScottPlot.Plottables.Scatter line = plot.Add.Scatter(
                losses.Select(loss => 100 * loss.BytesRatio).ToArray(), losses.Select(loss => Math.Log10(loss.Loss)).ToArray());
            line.LegendText = string.Create(CultureInfo.InvariantCulture, $"layer {layer.Layer}");
            (line.LineWidth, line.MarkerSize) = (1, 4);
            string name = isKeys ? layer.Keys : layer.Values;
            foreach (FormatLoss taken in losses.Where(loss => loss.Format == name))
            {
                plot.Add.Marker(100 * taken.BytesRatio, Math.Log10(taken.Loss), size: 14, color: line.Color, shape: MarkerShape.OpenCircle);
            }
        }

        plot.Axes.Left.TickGenerator = new ScottPlot.TickGenerators.NumericAutomatic
        {
            IntegerTicksOnly = true,
            LabelFormatter = exponent => Math.Pow(10, exponent).ToString("0.#######", CultureInfo.InvariantCulture),
        };
        plot.XLabel("bytes, % of dense fp16");
        plot.YLabel("KL divergence from dense, nats");
        plot.Title($"{(isKeys ? "Keys" : "Values")}: loss of each format; circles are recommended");
        plot.ShowLegend(Alignment.UpperRight);
    }
}
