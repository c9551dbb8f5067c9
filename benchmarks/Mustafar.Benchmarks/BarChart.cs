using System.CommandLine;
using System.Globalization;
using Microsoft.VisualBasic.FileIO;
using ScottPlot;

namespace Mustafar.Benchmarks;

/// <summary>Ratios as bars, with a line at 1.</summary>
internal static class BarChart
{
    internal static void Write(string path, string title, IReadOnlyList<(string Label, double Value)> bars)
    {
        Plot plot = new();
        plot.Add.Bars(bars.Select((bar, i) => new Bar
        {
            Position = bars.Count - i,
            Value = bar.Value,
            Orientation = Orientation.Horizontal,
            FillColor = Colors.SteelBlue,
            Label = bar.Value.ToString("0.00", CultureInfo.InvariantCulture),
        }).ToArray());
        plot.Axes.Left.SetTicks([.. bars.Select((_, i) => (double)(bars.Count - i))], [.. bars.Select(bar => bar.Label)]);
        plot.Axes.Left.MajorTickStyle.Length = 0;
        plot.Add.VerticalLine(1, color: Colors.Black);
        plot.Axes.Margins(left: 0);
        plot.Title(title);
        plot.SavePng(path, 1000, 80 + (28 * bars.Count));
    }

    internal static string Label(object shape, object dtype, object keep) => $"{shape} {dtype} keep {keep}";

    /// <summary>Draws a column of a report written on another machine, which may have no fonts.</summary>
    internal static Command Command()
    {
        Argument<FileInfo> source = new("csv") { Description = "A report's CSV file." };
        Option<string> column = new("--column") { Description = "The column to draw.", Required = true, HelpName = "NAME" };
        Option<string> title = new("--title") { Description = "The chart's title.", Required = true, HelpName = "TEXT" };
        Command command = new("chart", "Draw a report's CSV file as a PNG next to it.") { source, column, title };
        command.SetAction(parsed =>
        {
            FileInfo file = parsed.GetRequiredValue(source);
            using TextFieldParser rows = new(file.FullName) { Delimiters = [","] };
            string[] header = rows.ReadFields() ?? [];
            int index = Array.IndexOf(header, parsed.GetRequiredValue(column));
            if (index < 0)
            {
                Console.Error.WriteLine($"Expected one of the columns {string.Join("; ", header)}, but got {parsed.GetRequiredValue(column)}.");
                return 1;
            }

            List<(string, double)> bars = [];
            // Every report starts with the shape, the dtype and what is kept.
            while (rows.ReadFields() is string[] cells)
            {
                bars.Add((Label(cells[0], cells[1], cells[2]), double.Parse(cells[index], CultureInfo.InvariantCulture)));
            }

            Write(Path.ChangeExtension(file.FullName, ".png"), parsed.GetRequiredValue(title), bars);
            return 0;
        });
        return command;
    }
}
