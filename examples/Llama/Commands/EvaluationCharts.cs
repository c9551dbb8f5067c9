using System.Globalization;
using System.Text.Json.Nodes;
using Mustafar.Models.Evaluation;
using ScottPlot;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Charts of the results of an evaluation.</summary>
internal static class EvaluationCharts
{
    private const int Width = 1000;
    private const int Height = 640;

    /// <summary>Draws the results: quality against bytes, and a map of needles for each setting.</summary>
    /// <param name="report">The results.</param>
    /// <param name="directory">Where PNG files are written; those of the same names are replaced.</param>
    /// <returns>What could not be drawn, and why: a machine may have no fonts, and results matter more.</returns>
    public static IReadOnlyList<string> Write(EvaluationReport report, string directory)
    {
        List<string> problems = [];
        EvaluationUnit[] measured = [.. report.Units.Where(
            unit => unit.Task is PerplexityTask && double.IsFinite(unit.Value("perplexity")) && double.IsFinite(unit.Value("bytes_ratio")))];
        if (Array.Exists(measured, unit => unit.Setting.Options is null))
        {
            Draw("quality-bytes.png", path => QualityChart.Write(measured, path));
        }

        foreach (EvaluationUnit unit in report.Units.Where(unit => unit.Task is NeedleTask))
        {
            string name = string.Concat(unit.Setting.Name.Select(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '.' ? c : '_'));
            Draw($"needle-{name}.png", path => WriteNeedles(unit, (NeedleTask)unit.Task, path));
        }

        return problems;

        void Draw(string name, Action<string> draw)
        {
            if (Charts.Draw(name, directory, draw) is string problem)
            {
                problems.Add(problem);
            }
        }
    }

    // What the model finds likeliest, which says more about a small model than what it writes. Depth increases downwards.
    private static void WriteNeedles(EvaluationUnit unit, NeedleTask task, string path)
    {
        JsonNode groups = unit.Result.Details!["groups"]!;
        double[,] shares = new double[task.Depths.Count, task.Lengths.Count];
        Plot plot = new();
        for (int y = 0; y < task.Depths.Count; y++)
        {
            for (int x = 0; x < task.Lengths.Count; x++)
            {
                JsonNode cell = groups[NeedleTask.GroupOf(task.Lengths[x], task.Depths[y])]!;
                shares[y, x] = (double)cell["likeliest"]!;
                string text = string.Create(CultureInfo.InvariantCulture, $"{shares[y, x]:P0}\n({(double)cell["score"]!:P0} written)");
                ScottPlot.Plottables.Text label = plot.Add.Text(text, x, task.Depths.Count - 1 - y);
                (label.LabelAlignment, label.LabelBold) = (Alignment.MiddleCenter, true);
            }
        }

        ScottPlot.Plottables.Heatmap map = plot.Add.Heatmap(shares);
        map.Colormap = new ScottPlot.Colormaps.Viridis();
        map.ManualRange = new ScottPlot.Range(0, 1);
        plot.MoveToBack(map);
        plot.Axes.Bottom.SetTicks([.. task.Lengths.Select((_, x) => (double)x)], [.. task.Lengths.Select(Text)]);
        plot.Axes.Left.SetTicks(
            [.. task.Depths.Select((_, y) => (double)(task.Depths.Count - 1 - y))], [.. task.Depths.Select(depth => Text(depth))]);
        plot.XLabel("tokens of the context");
        plot.YLabel("depth of the needle");
        plot.Title($"{unit.Setting.Name}: the right number is the likeliest of 10");
        plot.SavePng(path, Width, Height);

        static string Text<T>(T number)
            where T : IFormattable => number.ToString("0.##", CultureInfo.InvariantCulture);
    }
}
