//! Text with tabs to columns, as Go's `text/tabwriter` makes them.

/// Aligns the cells that end with a tab. A column reaches over the lines that follow each other and have a cell in it;
/// it is as wide as its widest cell and `padding` blanks.
pub(super) fn aligned(text: &str, padding: usize) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len()]).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    for column in 0..columns {
        let has_cell = |line: usize| column + 1 < lines[line].len();
        let mut line = 0;
        while line < lines.len() {
            let end = (line..lines.len()).find(|line| !has_cell(*line)).unwrap_or(lines.len());
            let width = (line..end).map(|line| lines[line][column].chars().count()).max().unwrap_or_default();
            for width_of in &mut widths[line..end] {
                width_of[column] = width + padding;
            }
            line = end.max(line + 1);
        }
    }
    let row = |(cells, widths): (&Vec<&str>, &Vec<usize>)| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().concat()
    };
    let rows: Vec<String> = lines.iter().zip(&widths).map(row).collect();
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(aligned("a\tbb\tc\nddd\te\t\n", 2), "a    bb  c\nddd  e   \n");
        assert_eq!(aligned("é\tx\nplain\nlonger\ty", 1), "é x\nplain\nlonger y");
    }
}
